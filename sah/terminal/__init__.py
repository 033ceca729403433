"""The commands `sah show`, `compare`, `ls`, `validate` and `doctor`: one a file, imported when it is asked for."""
