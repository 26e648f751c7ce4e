"""The store: domains, their artefacts, the manifest and the files."""
