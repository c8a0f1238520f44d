"""Search for the strengths that change the behaviour most and everything else least, through hooks alone."""
