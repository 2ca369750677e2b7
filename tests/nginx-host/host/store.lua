--- What Kong keeps in PostgreSQL: services, routes, consumers, keys, plugins,
--- upstreams, targets.
--
-- One JSON document in a shared dictionary, with a version that rises with every
-- change. Workers decode it again when the version they know is old; whoever
-- changes it holds a lock for the read, the change and the write.
-- With a state file (run.sh --state) the document survives a restart.

local json = require "host.json"
local settings = require "host.settings"

local store = {}

local COLLECTIONS = { "services", "routes", "consumers", "keyauth_credentials", "plugins", "upstreams",
                      "targets" }
local LOCK_SECONDS = 10    -- a holder that died must not block for ever
local WAIT_SECONDS = 0.002

local shared = ngx.shared.host_state
local known_version, known


local function empty()
  local document = {}
  for _, name in ipairs(COLLECTIONS) do
    document[name] = {}
  end
  return document
end


function store.version()
  return shared:get("version") or 0
end


--- The document, for reading only: collection → id → entity.
function store.read()
  local version = store.version()
  if version ~= known_version then
    known = json.decode(shared:get("document") or "") or empty()
    known_version = version
  end
  return known
end


local function save(path, text)
  local file, err = io.open(path .. ".new", "w")
  if not file then
    ngx.log(ngx.ERR, "cannot write the state file: ", err)
    return
  end
  file:write(text)
  file:close()
  os.rename(path .. ".new", path)
end


local function lock()
  while not shared:add("lock", true, LOCK_SECONDS) do
    ngx.sleep(WAIT_SECONDS)
  end
end


--- Calls `change` with the document; keeps what it did unless it returns
--- nil, err or raises.
function store.update(change)
  lock()
  local document = json.decode(shared:get("document") or "") or empty()
  local ok, result, err = pcall(change, document)
  if ok and result ~= nil then
    local text = json.encode_entry(document)
    local stored, full = shared:set("document", text)
    if stored then
      shared:incr("version", 1, 0)
      if settings.state_file then
        save(settings.state_file, text)
      end
    else
      result, err = nil, { code = 8, name = "database error", message = full }
    end
  end
  shared:delete("lock")
  if not ok then
    error(result, 0)
  end
  return result, err
end


--- Reads the state file, in the master, before there are workers.
function store.restore(path)
  local file = path and io.open(path)
  if not file then
    return
  end
  local text = file:read("*a")
  file:close()
  if json.decode(text) then
    shared:set("document", text)
    shared:set("version", 1)
  end
end


return store
