"""The experiments of the papers, a folder for each and a file for each figure."""
