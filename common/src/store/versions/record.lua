-- versions/record.lua — what scripts share that write what is known of a version. Stands behind gate/core.lua.
-- KEYS  by the script that follows
-- ARGV  by the script that follows
-- Reply by the script that follows
-- Keeps P10: lists in a record are bounded. Fields that this release does not know stay as they are.
local MAX_BUILDS = 16

-- What is known of a version; nil if no session ever declared it. What is no object was written by hand, and says nothing.
local function record_of(version)
  local text = redis.call('HGET', versions, version)
  if not text then return nil end
  local ok, record = pcall(cjson.decode, text)
  return ok and type(record) == 'table' and record or {}
end

-- Times in µs have more digits than cjson writes of a number: they become text, which readers take as well.
local function exact(value, depth)
  if type(value) == 'number' and math.abs(value) >= 1e13 then return string.format('%.0f', value) end
  if type(value) ~= 'table' or depth == 0 then return value end
  local out = {}
  for name, inner in pairs(value) do out[name] = exact(inner, depth - 1) end
  return out
end

local function keep_record(version, record)
  redis.call('HSET', versions, version, cjson.encode(exact(record, 4)))
end

local function is_retired(record)
  return record.retired_us ~= nil and record.retired_us ~= cjson.null
end

local function holds(list, text)
  for _, known in ipairs(list) do
    if known == text then return true end
  end
  return false
end

-- A list with `text` as its newest, the oldest dropped where there are too many.
local function with_newest(list, text)
  local out = {}
  for i = math.max(1, #list - MAX_BUILDS + 2), #list do out[#out + 1] = list[i] end
  out[#out + 1] = text
  return out
end

-- The builds seen under a version, newest last. Empty: nobody has said.
local function builds_of(record)
  if type(record.builds) == 'table' and #record.builds > 0 then return record.builds end
  if type(record.build) == 'string' and record.build ~= '' then return { record.build } end
  return {}
end
