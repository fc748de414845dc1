-- Whether an id is in a list twice, near where it was seen; the tail may have moved away by then. Reads only.
-- KEYS  1 the ready list
-- ARGV  1 prefix  2 id  3 place of one sighting, counted from the tail (1 is the last)  4 place of the other
--       5 by how many places the tail may have moved
-- Reply 1 it is there twice | 0 not found twice
-- Cost  O(ARGV[5]), twice
local length = redis.call('LLEN', KEYS[1])
local found, places = 0, {}
for j = 3, 4 do
  local first = math.max(0, length - ARGV[j] - ARGV[5])
  for i, id in ipairs(redis.call('LRANGE', KEYS[1], first, length - ARGV[j])) do
    local place = first + i
    if id == ARGV[2] and not places[place] then
      places[place] = true
      found = found + 1
    end
  end
end
return found > 1 and 1 or 0
