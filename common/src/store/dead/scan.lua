-- dead/scan.lua — look through dead letters without fetching their payloads.
-- KEYS  1 dead
-- ARGV  1 from  2 to, both as XRANGE takes them  3 'up' | 'down'  4 most entries  5 most bytes looked at
--       6 version whose attempts could be given back, or ''
-- Reply {last entry looked at or '', (entry, bytes, payload 1|0, task, reason, error, version, session, died ms, attempt,
--       attempts that could be given back, attempts that the error chain does not tell of)*}
-- Keeps P10 (bounded in count and bytes; a text of any length comes cut).
local MOST_TEXT = 1000
local down = ARGV[3] == 'down'
local from, to, most, most_bytes = ARGV[1], ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local n, bytes, last, out = 0, 0, '', { '' }
while n < most and bytes < most_bytes do
  local page
  if down then
    page = redis.call('XREVRANGE', KEYS[1], from, to, 'COUNT', math.min(10, most - n))
  else
    page = redis.call('XRANGE', KEYS[1], from, to, 'COUNT', math.min(10, most - n))
  end
  for _, entry in ipairs(page) do
    local fields = entry[2]
    local length = size(fields)
    local function text(name) return string.sub(value_of(fields, name) or '', 1, MOST_TEXT) end
    local given, untold = 0, 0
    if ARGV[6] ~= '' then given, untold = give_back(fields, ARGV[6]) end
    out[#out + 1] = { entry[1], length, value_of(fields, 'payload') and 1 or 0, text('id'), text('dead_reason'),
      text('dead_error'), text('dead_version'), text('dead_session'), text('dead_at'), text('attempt'), given, untold }
    n, bytes, last = n + 1, bytes + length, entry[1]
  end
  if #page == 0 then break end
  from = '(' .. last
end
out[1] = last
return out
