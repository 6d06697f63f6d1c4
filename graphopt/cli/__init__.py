"""The command line: one verb, one file; a verb parses, calls the API and prints."""
