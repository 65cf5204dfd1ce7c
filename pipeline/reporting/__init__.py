"""Records of a run, and what is made of them: summary, figures, HTML report."""
