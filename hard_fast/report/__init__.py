"""The page that shows a run or a study: tables, curves, phases and galleries in one file."""
