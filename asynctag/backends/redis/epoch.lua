-- Begin a new epoch: everything that is stored becomes a miss.
-- ARGV[5]: only if the epoch is still this one; 0: in any case, and max_ttl may be agreed on anew. -> epoch, seq

open()
if ARGV[5] == '0' then
  redis.call('ZREM', journal, 'max_ttl')
end
if ARGV[5] == '0' or tonumber(ARGV[5]) == epoch then
  begin_epoch()
  take_number()
end
return { epoch, seq }
