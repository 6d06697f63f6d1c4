"""The mathematics shared by all schemes, in numpy alone, written to be read beside the papers."""
