"""What tests of several folders share: builders of small models, running them, and checking rewrites."""
