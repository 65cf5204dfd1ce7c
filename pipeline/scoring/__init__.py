"""From a scoring pass to the Gram matrix: factors, Adam moments, preconditioner, collectives. Knows no data,
no selection."""
