--- No process of a test may outlive the test.
--
-- nginx's workers go on when their master is killed with SIGKILL, which is how
-- many test runners end a child. So each worker looks once a second whether its
-- master still lives, and worker 0 whether the process does that the host was
-- told to watch (NGINX_HOST_WATCH_PID).

local ffi = require "ffi"


ffi.cdef [[
int kill(int pid, int sig);
int getpid(void);
int getppid(void);
]]

local SIGTERM = 15
local INTERVAL = 1  -- seconds


local lifecycle = {}


local function is_alive(pid)
  -- Signal 0 only asks. EPERM (1) means alive and somebody else's.
  return ffi.C.kill(pid, 0) == 0 or ffi.errno() == 1
end


function lifecycle.watch(settings)
  local master = ffi.C.getppid()
  local watched = ngx.worker.id() == 0 and settings.watch_pid

  local function look(premature)
    if premature then
      return
    end
    if ffi.C.getppid() ~= master then
      ffi.C.kill(ffi.C.getpid(), SIGTERM)
      return
    end
    if watched and not is_alive(watched) then
      ngx.log(ngx.NOTICE, "process ", watched, " is gone, stopping")
      ffi.C.kill(master, SIGTERM)
    end
  end

  assert(ngx.timer.every(INTERVAL, look))
end


return lifecycle
