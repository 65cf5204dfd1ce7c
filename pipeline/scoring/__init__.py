"""The way from a scoring pass to the Gram matrix: factors, Adam's moments, metric, backends."""
