"""Training: recipes, pictures, the form of a model that trains fast, and the loop; `python -m ribsr train`."""
