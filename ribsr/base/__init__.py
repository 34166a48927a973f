"""The ground floor, for every folder and without torch: errors, files, settings, sizes, pictures, command lines."""
