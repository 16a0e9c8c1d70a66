"""Array programs that know neither model nor attack."""
