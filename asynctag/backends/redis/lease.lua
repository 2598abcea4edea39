-- Hold tags for a transaction, or go on holding them: entries that carry one are invalid, and none is stored.
-- ARGV[5]: the holder, [6]: for how many milliseconds, [7...]: the tags.
-- -> epoch, seq, how many of them the holder had not held

open()
local holder, tags = ARGV[5], rest(7)
local ends = now_ms() + tonumber(ARGV[6])
local new = 0
for _, tag in ipairs(tags) do
  local holders = check_holders(tag)
  if not holders[holder] or redis.call('ZSCORE', journal, tag) ~= 'inf' then
    new = new + 1
  end
end
take_number()
number_tags('+inf', tags, '', nil)
for _, tag in ipairs(tags) do
  redis.call('HSET', base .. 'lease:' .. tag, holder, ends)
end
return { epoch, seq, new }
