"""The folder of this file is on the import path: `import toy` works in every test."""
