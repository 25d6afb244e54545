-- queue/entry.lua — what scripts that move entries share: reading, overriding and packing their fields.
-- KEYS  by the script that follows
-- ARGV  by the script that follows
-- Reply by the script that follows
-- Keeps P1: a move copies every field, known or not, so nothing a newer producer wrote is lost on the way.
-- Of more than 2000 fields, those that are not ours travel packed in one, `rest`.
-- Of a field given twice the last counts, as in Rust.
local function value_of(fields, name)
  for i = #fields - 1, 1, -2 do if fields[i] == name then return fields[i + 1] end end
end

local function with(fields, overrides)
  local out = {}
  for i = 1, #fields, 2 do
    if not overrides[fields[i]] then out[#out + 1], out[#out + 2] = fields[i], fields[i + 1] end
  end
  for name, value in pairs(overrides) do out[#out + 1], out[#out + 2] = name, value end
  return out
end

local function size(fields)
  local n = 0
  for _, text in ipairs(fields) do n = n + #text end
  return n
end

-- The id of an entry that carries none; TaskId::of_entry in Rust computes the same.
local function derived_id(entry_id, salt)
  local function bits(digits, n) -- digit by digit: a number of Lua holds 53 bits, an id up to 64
    local value = 0
    for digit in string.gmatch(digits, '%d') do value = (value * 10 + tonumber(digit)) % 2 ^ n end
    return value
  end
  local ms, seq = string.match(entry_id, '^(%d+)%-(%d+)$')
  ms, seq = bits(ms, 48), bits(seq, 42)
  local hex = string.format('%04x%08x7%03x%08x%08x', math.floor(ms / 2 ^ 32), ms % 2 ^ 32,
    math.floor(seq / 2 ^ 30), 2 ^ 31 + seq % 2 ^ 30, tonumber(salt))
  return string.sub(hex, 1, 8) .. '-' .. string.sub(hex, 9, 12) .. '-' .. string.sub(hex, 13, 16) .. '-' ..
    string.sub(hex, 17, 20) .. '-' .. string.sub(hex, 21, 32)
end

-- Writes down what the entry's place said: it is about to leave that place.
local function defaulted(entry, salt)
  local fields, missing = entry[2], {}
  if not value_of(fields, 'id') then missing.id = derived_id(entry[1], salt) end
  if not value_of(fields, 'enqueued_at') then missing.enqueued_at = string.match(entry[1], '^%d+') end
  return next(missing) and with(fields, missing) or fields
end

local function pack(fields)
  local out = {}
  for i, text in ipairs(fields) do out[i] = #text .. ':' .. text end
  return table.concat(out)
end

local function unpack_fields(text)
  local out, at = {}, 1
  while at <= #text do
    local from, to, n = string.find(text, '^(%d+):', at)
    if not from then break end
    out[#out + 1] = string.sub(text, to + 1, to + tonumber(n))
    at = to + tonumber(n) + 1
  end
  return out
end

-- P1: one call takes some 8000 values, and a move that fails half way would lose the task.
local MAX_VALUES = 4000
local OURS = { id = 1, payload = 1, key = 1, attempt = 1, deaths = 1, enqueued_at = 1, headers = 1, errors = 1,
  expires = 1, priority = 1, result = 1, recovered = 1, unique = 1, format = 1, snoozes = 1, slot = 1,
  dead_reason = 1, dead_error = 1, dead_version = 1, dead_session = 1, dead_at = 1 }
local function add(stream, fields)
  if #fields > MAX_VALUES then
    local kept, rest = {}, {}
    for i = 1, #fields, 2 do
      local name, value = fields[i], fields[i + 1]
      if OURS[name] then kept[name], value = value, kept[name] end -- the last counts
      if value then rest[#rest + 1], rest[#rest + 2] = name, value end
    end
    kept.rest = pack(rest)
    fields = with({}, kept)
  end
  return redis.call('XADD', stream, '*', unpack(fields))
end
