"""Which steps to compute: error graphs, the routes through them and the best paths. numpy only."""
