-- queue/promote.lua — put delayed tasks that are due into the stream of their priority.
-- KEYS  1 delayed  2 envelope  3 main stream  4 high  5 low  6 head
-- ARGV  1 most entries  2 most bytes
-- Reply {'promoted', n, ms until the next one is due or -1}
-- Keeps P1 (one script: in the set or in the stream, never neither), P10 (bounded in count and bytes).
local delayed, envelope, main = KEYS[1], KEYS[2], KEYS[3]
local priorities = { high = KEYS[4], low = KEYS[5] }
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
local n, bytes = 0, 0
for _, task in ipairs(due) do
  local packed = redis.call('HGET', envelope, task) or ''
  local fields = unpack_fields(packed)
  -- P1: an envelope that is lost or unreadable is no task any more, and ends with the dead letters, not nowhere.
  if #fields == 0 or #fields % 2 == 1 then fields = { 'id', task, 'envelope', packed } end
  -- It has been in line once, and the time that its key's rate gave it does not wait.
  local slot = tonumber(string.match(value_of(fields, 'slot') or '', ' (%d+)$') or 0)
  add(slot > now - 1000 and KEYS[6] or priorities[value_of(fields, 'priority')] or main, fields)
  bytes = bytes + #packed
  redis.call('ZREM', delayed, task)
  redis.call('HDEL', envelope, task)
  n = n + 1
  if bytes > tonumber(ARGV[2]) then break end
end
local next_one = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
local wait = next_one[2] and math.max(0, tonumber(next_one[2]) - now) or -1
return { 'promoted', n, wait }
