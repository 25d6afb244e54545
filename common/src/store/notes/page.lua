#!lua flags=allow-oom
-- notes/page.lua — one page of a queue's log, newest first, of some kinds only: what people look for is rare among attempts.
-- KEYS  1 log
-- ARGV  1 newest id, '+' or '(' and an id  2 oldest id or '-'  3 most entries looked at  4 most entries given
--       5 bytes to which a value is cut  6 'only' or 'not'  7.. kinds
-- Reply {'page', where to go on ('' at the end), looked at, (id, fields)*}
-- Keeps P10: bounded in entries and in bytes, looked at and given; an entry of attempts may hold a thousand.
local MAX_BYTES, MAX_LOOKED, max_value = 1048576, 8388608, tonumber(ARGV[5])
local listed, only = {}, ARGV[6] == 'only'
for i = 7, #ARGV do listed[ARGV[i]] = true end
local found, looked, bytes, seen = {}, 0, 0, 0
local from, goes_on = ARGV[1], true
while goes_on and looked < tonumber(ARGV[3]) and #found < tonumber(ARGV[4]) and bytes < MAX_BYTES
  and seen < MAX_LOOKED do
  local entries = redis.call('XREVRANGE', KEYS[1], from, ARGV[2], 'COUNT', 50)
  goes_on = #entries == 50
  for i, entry in ipairs(entries) do
    local kind = ''
    for f = 1, #entry[2], 2 do
      if entry[2][f] == 'kind' then kind = entry[2][f + 1] break end
    end
    looked, from = looked + 1, '(' .. entry[1]
    for f = 2, #entry[2], 2 do seen = seen + #entry[2][f] end
    if (listed[kind] or false) == only then
      for f = 1, #entry[2] do
        entry[2][f] = string.sub(entry[2][f], 1, max_value)
        bytes = bytes + #entry[2][f]
      end
      found[#found + 1] = entry
      if #found >= tonumber(ARGV[4]) or bytes >= MAX_BYTES then
        goes_on = goes_on or i < #entries
        break
      end
    end
  end
end
return { 'page', goes_on and from or '', looked, unpack(found) }
