#!lua flags=allow-oom
-- rollout/long.lua — count attempts that run for long, and still do.
-- KEYS  1 block
-- ARGV  1 TTL s  then (field, by)*
-- Reply {'counted'}
-- Keeps P10: a caller has a few fields for each version and length, whatever the number of attempts.
for i = 2, #ARGV, 2 do
  -- A counter that somebody made a text of keeps no other from being counted.
  redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return { 'counted' }
