/*
 * many_cpus.c - runs a program as on a host with so many processors. TEST EQUIPMENT.
 *
 *     many_cpus NUMBER PROGRAM [ARGUMENT…]
 *
 * A static program, and one in Go, asks the kernel itself how many processors it may use, past every library that could be put in
 * between. So the kernel is told to ask here (a seccomp filter with a listener, Linux 5.0 or newer): a child of the program answers
 * sched_getaffinity(2) for it and for whatever it starts, and nothing else is changed. It works in a container without capabilities.
 * The C library reads /sys/devices/system/cpu/online instead, which the caller has to mount.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST = 8192 };

static void need(int is_right, const char *what) {
    if (is_right) return;
    fprintf(stderr, "many_cpus: %s: %s\n", what, strerror(errno));
    exit(125);
}

/* As the kernel answers: the bytes of the mask, or EINVAL where they have no room. */
static void answer(int listener, unsigned long processors) {
    static unsigned char mask[MOST / 8];
    size_t length = (processors + 63) / 64 * 8;
    for (unsigned long n = 0; n < processors; n++) mask[n / 8] |= 1 << n % 8;
    for (;;) {
        struct seccomp_notif call = {0};
        struct seccomp_notif_resp result = {0};
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) {
            /* The caller was killed before it was heard, or nobody is left who could call. */
            if (errno == EINTR || errno == ENOENT) continue;
            _exit(0);
        }
        result.id = call.id;
        if (call.data.args[1] < length) {
            result.error = -EINVAL;
        } else {
            struct iovec from = {mask, length}, to = {(void *)call.data.args[2], length};
            result.val = process_vm_writev(call.pid, &from, 1, &to, 1, 0);
            if (result.val < 0) {
                result.val = 0;
                result.error = -errno;
            }
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &result);
    }
}

int main(int count, char **words) {
    struct sock_filter instructions[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_getaffinity, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof instructions / sizeof *instructions, instructions};
    unsigned long processors = count > 2 ? strtoul(words[1], NULL, 10) : 0;
    errno = EINVAL;
    need(processors >= 1 && processors <= MOST, "many_cpus NUMBER PROGRAM");
    need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no new privileges");
    /* Where the Yama module watches, a child may not write to its parent unless that one allows it. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    need(listener >= 0, "seccomp");
    pid_t parent = getpid(), child = fork();
    need(child >= 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (getppid() != parent) _exit(0);
        setsid();
        answer(listener, processors);
    }
    close(listener);
    execvp(words[2], words + 2);
    need(0, words[2]);
}
