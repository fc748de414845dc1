"""One module for each fault; `chaos.scenario.all_scenarios` finds them."""
