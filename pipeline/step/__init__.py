"""The stages between candidates and update, in order: a look and its retries, forwards, the deal, the
weighted step."""
