-- queue/sweep.lua — bring tasks back from a lane that the gate no longer routes to.
-- KEYS  1 lane  2 head
-- ARGV  1 session that sweeps  2 most entries  3 most bytes  4 salt of the lane
-- Reply {'swept', n}
-- Keeps P5 (they pass the gate again), P1 (reads `>` only: an entry already settled or held never runs again), P10.
local lane, head = KEYS[1], KEYS[2]
if redis.call('EXISTS', lane) == 0 then return { 'swept', 0 } end
local n, bytes, most, most_bytes = 0, 0, tonumber(ARGV[2]), tonumber(ARGV[3])
while n < most and bytes < most_bytes do
  local read = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', math.min(10, most - n), 'STREAMS', lane, '>')
  if not read then break end
  for _, entry in ipairs(read[1][2]) do
    local fields = defaulted(entry, ARGV[4])
    add(head, fields)
    redis.call('XACK', lane, 'workers', entry[1])
    redis.call('XDEL', lane, entry[1])
    n, bytes = n + 1, bytes + size(fields)
  end
end
return { 'swept', n }
