-- Let go of tags and invalidate them, whether or not they are still held. Those that another holds stay held.
-- ARGV[5]: the holder, [6...]: the tags. -> epoch, seq

open()
local holder, tags = ARGV[5], rest(6)
local number = take_number()
for _, tag in ipairs(tags) do
  local key, holders = base .. 'lease:' .. tag, check_holders(tag)
  redis.call('HDEL', key, holder)
  holders[holder] = nil
  if not next(holders) then
    redis.call('UNLINK', key)
    redis.call('ZADD', journal, number, tag)
  end
end
prune(#tags)
return { epoch, seq }
