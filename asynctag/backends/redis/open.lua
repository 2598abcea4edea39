-- Open the journal, and hold max_ttl against the one that it was made with.
-- -> epoch, seq, the journal's max_ttl in microseconds (0 if none was said yet)

open()
local agreed = redis.call('ZSCORE', journal, 'max_ttl')
if not agreed and tonumber(ARGV[3]) > 0 then
  agreed = -tonumber(ARGV[3])
  set('max_ttl', -agreed)
end
return { epoch, seq, agreed and -tonumber(agreed) or 0 }
