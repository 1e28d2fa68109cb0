/* dist/conch: unpacks the tree that it carries into the user's cache, once, and becomes the Python in it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

/* The build defines NAME, the tree's folder: the version and what the payload hashes to. */
__asm__(".section .rodata\n.balign 16\n"
        "payload: .incbin \"payload.zst\"\n"
        "payload_end: .byte 0\n"
        ".previous\n");
extern const char payload[], payload_end[];

struct entry {                 /* before each path and each file's bytes; scripts/binary.py packs it as <IIQ */
    uint32_t mode, path;       /* st_mode, and the length of the path */
    uint64_t size;
};

struct source {
    ZSTD_DStream *stream;
    ZSTD_inBuffer in;
};

static char failures[8192];

/* Remembers why a folder cannot be used; returns -1. */
static int failed(const char *path, const char *reason)
{
    size_t used = strlen(failures);
    snprintf(failures + used, sizeof failures - used, "\n  %s: %s", path, reason);
    return -1;
}

/* Fills `data` with the next `size` bytes of the payload; -1 where it ends before, or is damaged. */
static int take(struct source *from, void *data, size_t size)
{
    ZSTD_outBuffer out = {data, size, 0};
    while (out.pos < size) {
        size_t before = from->in.pos + out.pos;
        if (ZSTD_isError(ZSTD_decompressStream(from->stream, &out, &from->in)) || before == from->in.pos + out.pos) {
            errno = EBADMSG;
            return -1;
        }
    }
    return 0;
}

static int write_file(struct source *from, int folder, const char *path, const struct entry *entry, char *buffer,
                      size_t room)
{
    int file = openat(folder, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, entry->mode & 0777);
    if (file < 0)
        return -1;
    for (uint64_t left = entry->size; left;) {
        size_t size = left < room ? left : room;
        if (take(from, buffer, size)) {
            close(file);
            return -1;
        }
        for (size_t done = 0; done < size;) {
            ssize_t wrote = write(file, buffer + done, size - done);
            if (wrote < 0 && errno != EINTR) {
                close(file);
                return -1;
            }
            done += wrote > 0 ? wrote : 0;
        }
        left -= size;
    }
    return close(file);
}

/* Writes the whole tree below the open folder; -1 and errno where that cannot be. */
static int unpack(int folder)
{
    static char buffer[1 << 20], path[4096];
    struct source from = {ZSTD_createDStream(), {payload, payload_end - payload, 0}};
    struct entry entry;
    int status = -1;
    if (!from.stream)
        return -1;
    for (;;) {
        if (take(&from, &entry, sizeof entry))
            break;
        if (!entry.path) { /* the end */
            status = 0;
            break;
        }
        if (entry.path >= sizeof path || take(&from, path, entry.path))
            break;
        path[entry.path] = 0;
        if (S_ISDIR(entry.mode) ? mkdirat(folder, path, 0700)
                                : write_file(&from, folder, path, &entry, buffer, sizeof buffer))
            break;
    }
    ZSTD_freeDStream(from.stream);
    return status;
}

static int remove_one(const char *path, const struct stat *found, int kind, struct FTW *at)
{
    (void)found, (void)kind, (void)at;
    return remove(path);
}

/* Whether a folder is ours alone to write; makes it first, if it is not there. */
static int own(const char *path)
{
    struct stat found;
    if (mkdir(path, 0700) && errno != EEXIST)
        return failed(path, strerror(errno));
    if (lstat(path, &found))
        return failed(path, strerror(errno));
    if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid() || found.st_mode & 022)
        return failed(path, "is not a folder that this user owns and nobody else may write");
    return 0;
}

/* Makes `home` whole, once: who comes meanwhile waits at the lock; what a killed start left is thrown away. */
static int fill(const char *home, const char *building, const char *lock)
{
    struct stat found;
    int folder, status = -1, held = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (held < 0 || flock(held, LOCK_EX))
        return failed(lock, strerror(errno));
    if (!lstat(home, &found)) /* somebody else was faster */
        return close(held);
    nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (mkdir(building, 0700) || (folder = open(building, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
        failed(building, strerror(errno));
    } else {
        if (unpack(folder) || rename(building, home)) {
            failed(building, errno == EBADMSG ? "this program's file is damaged" : strerror(errno));
            nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        } else
            status = 0;
        close(folder);
    }
    close(held);
    return status;
}

/* Becomes the Python under `cache`; returns where that cannot be, with the reason noted. */
static void start(const char *cache, const char *name, mode_t mask, int count, char **words)
{
    char folder[3072], home[3584], building[3584], lock[3584], program[3700], script[3700], libraries[3700];
    char **command = calloc(count + 6, sizeof *command);
    if (!command || snprintf(folder, sizeof folder, "%s%s", cache, name) >= (int)sizeof folder) {
        failed(cache, "its name is too long");
        return;
    }
    snprintf(home, sizeof home, "%s/" NAME, folder);
    snprintf(building, sizeof building, "%s/." NAME ".part", folder);
    snprintf(lock, sizeof lock, "%s/." NAME ".lock", folder);
    snprintf(program, sizeof program, "%s/bin/conch", home);
    snprintf(script, sizeof script, "%s/" SCRIPT, home);
    snprintf(libraries, sizeof libraries, "%s/lib", home);
    if (own(folder) || (access(home, F_OK) && fill(home, building, lock)) || own(home))
        return;
    int at = 0;
    command[at++] = program;
    command[at++] = "-I"; /* no PYTHON variables, no user's packages */
    command[at++] = "-S";
    command[at++] = "-B";
    command[at++] = script;
    for (int word = 1; word < count; word++)
        command[at++] = words[word];
    setenv("LD_LIBRARY_PATH", libraries, 1);
    umask(mask);
    execv(program, command);
    umask(077);
    failed(program, strerror(errno));
}

int main(int count, char **words)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char path[3072], name[64];
    mode_t mask = umask(077);
    if (cache && *cache == '/')
        start(cache, "/conch", mask, count, words);
    if (home && *home == '/' && snprintf(path, sizeof path, "%s/.cache", home) < (int)sizeof path) {
        mkdir(path, 0700); /* when it fails, start() says why */
        start(path, "/conch", mask, count, words);
    }
    snprintf(name, sizeof name, "/conch-%u", (unsigned)geteuid());
    start("/tmp", name, mask, count, words);
    fprintf(stderr,
            "conch: there is no folder to unpack this program into: set XDG_CACHE_HOME to one that this user owns, "
            "with 150 MB free and where programs may run. Tried:%s\n",
            failures);
    return 1;
}
