"""Selection of a direction among positions and residual points, by what the model does under each, and refinement."""
