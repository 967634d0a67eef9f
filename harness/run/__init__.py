"""From a plan to values on this machine: what is missing, inputs first, each stage once."""
