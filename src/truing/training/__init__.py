"""One step, one loop. Methods differ in their source and their objective, never in the loop."""
