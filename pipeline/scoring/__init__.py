"""From a scoring pass to the Gram matrix: factors, Adam moments and metric, backends. Knows no data,
no selection."""
