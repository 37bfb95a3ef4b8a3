"""Sound to tokens and back: the music codec, its training and the stage that encodes a data set."""
