"""Models: loaded, adapted, asked, scored."""
