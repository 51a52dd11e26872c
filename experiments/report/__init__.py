"""The report: claims and verdicts, tables, figures and the pages."""
