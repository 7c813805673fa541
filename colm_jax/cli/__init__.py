"""The command line: flags and gin in, library calls out, errors as one line."""
