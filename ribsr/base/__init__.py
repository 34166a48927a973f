"""The ground floor, for every folder and without torch: errors, files, sizes, pictures, what commands share."""
