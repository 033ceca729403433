"""Dense score of every form of the needle task."""
