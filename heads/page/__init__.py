"""The report as one page that opens from disk: data, template, style and script."""
