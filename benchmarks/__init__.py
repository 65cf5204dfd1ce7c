"""Speed, memory and convergence, measured; results/ has what came out, with the machine."""
