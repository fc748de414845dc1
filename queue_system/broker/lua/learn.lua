-- Notes the kind of a queue's processors, as a worker has found it: its producers may not know the function.
-- KEYS  1 registry  2 registry:version  3 none
-- ARGV  1 prefix  2 "{priority}:{queue}"  3 kind a|s
-- Reply the kind on record from now on
return register_queue(ARGV[1], ARGV[2], ARGV[3])
