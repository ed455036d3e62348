"""What a run folder says: health with evidence, tables, plots and next steps, of one run or of several side by side."""
