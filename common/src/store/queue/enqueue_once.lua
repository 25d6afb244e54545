-- queue/enqueue_once.lua — enqueue tasks so that trying again is safe.
-- KEYS  1 main stream  2.. markers, one per task
-- ARGV  1 window ms, then per task: n, (field, value)*
-- Reply {'enqueued', entry id per task…}; a repeated task answers with the entry id of the first try
-- Keeps P2: the marker and the entry are written together or not at all.
local out, at = { 'enqueued' }, 2
for i = 2, #KEYS do
  local n = tonumber(ARGV[at])
  local first = redis.call('GET', KEYS[i])
  if not first then
    first = redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + 2 * n))
    redis.call('SET', KEYS[i], first, 'PX', ARGV[1])
  end
  at = at + 1 + 2 * n
  out[#out + 1] = first
end
return out
