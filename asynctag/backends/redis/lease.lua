-- Hold tags for a transaction, or go on holding them: entries that carry one are invalid, and none is stored.
-- ARGV[5]: the holder, [6]: for how many milliseconds, [7...]: the tags.
-- -> epoch, seq, how many of them the holder had not held

open()
local holder, tags = ARGV[5], rest(7)
local ends = now_ms() + tonumber(ARGV[6])
local new = 0
for _, tag in ipairs(tags) do
  local its_end = check_holders(tag)[holder]
  local number = redis.call('ZSCORE', journal, tag)
  if not its_end or number ~= 'inf' then
    new = new + 1
  end
  hold(tag, holder, math.max(ends, its_end or 0))
  if number ~= 'inf' then
    redis.call('HSET', base .. 'lease:' .. tag, BEFORE, number and -tonumber(number) or 0)
  end
end
take_number()
return { epoch, seq, new }
