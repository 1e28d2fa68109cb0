/* dist/conch: unpacks the tree that it carries into the user's cache, once, and becomes the Python in it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

/* The build defines NAME, the tree's folder: the version and what the payload hashes to. The first layer is what a
   start needs, the second what is imported later, if at all. */
__asm__(".section .rodata\n.balign 16\n"
        "first: .incbin \"first.zst\"\n"
        "second: .incbin \"second.zst\"\n"
        "second_end: .byte 0\n"
        ".previous\n");
extern const char first[], second[], second_end[];

enum { UNUSED_DAYS = 30 };           /* an old version is removed then */
enum { NEEDED = 150 * 1000 * 1000 }; /* bytes on the disk, of both layers */

/* Named by place(). `second_home` is renamed there when all is on the disk: where it is, nothing is missing. */
static char folder[3072], home[3584], building[3584], lock[3584];
static char program[3600], second_home[3600], second_building[3600];

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
    mode_t mode = (entry->mode & 0777) | S_ISVTX; /* systemd-tmpfiles, which cleans /tmp, removes no such file */
    int file = openat(folder, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
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

/* Writes a layer below the open folder; -1 and errno where that cannot be. */
static int unpack(int folder, const char *payload, const char *end)
{
    static char buffer[1 << 20], path[4096];
    struct source from = {ZSTD_createDStream(), {payload, end - payload, 0}};
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

/* Makes a folder `building` of a layer, and renames it; with `sync`, once the disk has it. */
static int build(const char *building, const char *target, const char *payload, const char *end, int sync)
{
    int into = -1;
    nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS); /* of a start that was killed */
    if (!mkdir(building, 0700) && (into = open(building, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0 &&
        !unpack(into, payload, end) && (!sync || !syncfs(into)) && !rename(building, target))
        return close(into);
    failed(building, errno == EBADMSG ? "this program's file is damaged" : strerror(errno));
    nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (into >= 0)
        close(into);
    return -1;
}

/* Removes the versions, whole or not, that nobody has started for UNUSED_DAYS and nobody runs. */
static void remove_unused(void)
{
    DIR *versions = opendir(folder);
    struct dirent *entry;
    struct stat found;
    char path[4096];
    while (versions && (entry = readdir(versions))) {
        if (!entry->d_name[strspn(entry->d_name, ".")] || !strcmp(entry->d_name, NAME))
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        int version = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (version >= 0 && !fstat(version, &found) && found.st_mtime < time(NULL) - UNUSED_DAYS * 86400L &&
            !flock(version, LOCK_EX | LOCK_NB))
            nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
        if (version >= 0)
            close(version);
    }
    if (versions)
        closedir(versions);
}

/* The second layer, by whoever holds the lock. */
static int finish(void)
{
    if (!access(second_home, F_OK))
        return 0;
    if (build(second_building, second_home, second, second_end, 1))
        return -1;
    remove_unused();
    return 0;
}

/* Leaves a process behind that unpacks the second layer, and has the lock until then. */
static void finish_behind(void)
{
    pid_t child = fork();
    if (!child) {
        if (!fork()) { /* an orphan: nobody has to wait for it */
            setsid();
            close_range(0, 2, 0); /* who reads our output shall see its end */
            setpriority(PRIO_PROCESS, 0, 19);
            _exit(!!finish());
        }
        _exit(0);
    }
    if (child > 0)
        waitpid(child, NULL, 0);
}

/* Whether both layers are there; both, since a home may have been deleted in part. */
static int whole(void)
{
    return !access(program, F_OK) && !access(second_home, F_OK);
}

/* Whether a process lives off `home`, which then no power failure has spoilt, and which must not be taken from it. */
static int in_use(void)
{
    int used = open(home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int alone = used < 0 || !flock(used, LOCK_EX | LOCK_NB);
    if (used >= 0)
        close(used);
    return !alone && !access(program, F_OK);
}

/* Whether both layers find room on the disk: the second comes when it is too late to go elsewhere. */
static int room(void)
{
    struct statvfs disk;
    if (!statvfs(folder, &disk) && disk.f_blocks && disk.f_bavail * disk.f_frsize < NEEDED)
        return failed(folder, "has less than 150 MB free");
    return 0;
}

/* Makes `home` usable: who comes while another unpacks the first layer waits. A home without its second layer, where
   nobody is at work on that and nobody lives off it, is what a kill or a power failure left: it is made anew. */
static int fill(void)
{
    int held = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), status = 0;
    if (held < 0)
        return failed(lock, strerror(errno));
    while (!whole()) {
        if (!flock(held, LOCK_EX | LOCK_NB)) {
            if (whole())
                break;
            if (!in_use()) {
                nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS);
                rename(home, building);
                nftw(building, remove_one, 16, FTW_DEPTH | FTW_PHYS);
                status = room() || build(building, home, first, second, 0);
            }
            if (!status)
                finish_behind();
            break;
        }
        if (errno != EWOULDBLOCK) {
            status = failed(lock, strerror(errno));
            break;
        }
        if (!access(home, F_OK))
            break;
        usleep(2000);
    }
    close(held);
    return status;
}

/* Keeps `home` from being removed for as long as this process and the Python that it becomes live. */
static void use(void)
{
    int used = open(home, O_RDONLY | O_DIRECTORY);
    if (used >= 0 && !flock(used, LOCK_SH))
        futimens(used, NULL);
}

/* Names the places below `cache`; -1 where that is too long. */
static int place(const char *cache, const char *name)
{
    if (snprintf(folder, sizeof folder, "%s%s", cache, name) >= (int)sizeof folder)
        return failed(cache, "its name is too long");
    if (strpbrk(folder, ":;$"))
        return failed(cache, "its name has one of : ; $, which ld.so reads as more than a character");
    snprintf(home, sizeof home, "%s/" NAME, folder);
    snprintf(building, sizeof building, "%s/." NAME ".part", folder);
    snprintf(lock, sizeof lock, "%s/." NAME ".lock", folder);
    snprintf(program, sizeof program, "%s/bin/conch", home);
    snprintf(second_home, sizeof second_home, "%s/second", home);
    snprintf(second_building, sizeof second_building, "%s/.second", home);
    return 0;
}

/* Becomes the Python under `cache`; returns where that cannot be, with the reason noted. */
static void start(const char *cache, const char *name, mode_t mask, int count, char **words)
{
    char script[3700], libraries[3700], launcher[PATH_MAX], option[PATH_MAX + 16];
    char **command = calloc(count + 8, sizeof *command);
    mkdir(cache, 0700); /* as XDG asks; where it fails, own() says why */
    if (!command || place(cache, name) || own(folder) || (!whole() && fill()) || own(home))
        return;
    use();
    snprintf(script, sizeof script, "%s/" SCRIPT, home);
    snprintf(libraries, sizeof libraries, "%s/lib", home);
    if (!realpath((const char *)getauxval(AT_EXECFN), launcher)) /* not /proc/self/exe: a bare root has no /proc */
        launcher[0] = 0;
    snprintf(option, sizeof option, "launcher=%s", launcher);
    int at = 0;
    command[at++] = program;
    command[at++] = "-I"; /* no PYTHON variables, no user's packages */
    command[at++] = "-S";
    command[at++] = "-B";
    command[at++] = "-X";
    command[at++] = option;
    command[at++] = script;
    for (int word = 1; word < count; word++)
        command[at++] = words[word];
    setenv("LD_LIBRARY_PATH", libraries, 1);
    setenv("MALLOC_ARENA_MAX", "1", 0); /* else each thread that makes sound has a heap of its own */
    umask(mask);
    execv(program, command);
    umask(077);
    failed(program, strerror(errno));
}

/* Waits until nobody is at work on the second layer; makes it, where it is not there then. */
static int wait_and_finish(const char *folder)
{
    if (place(folder, ""))
        return -1;
    int held = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return held < 0 || flock(held, LOCK_EX) ? failed(lock, strerror(errno)) : finish();
}

/* What scripts/start.py runs where it needs the second layer: returns when that is there, whoever unpacks it. */
static int finish_now(const char *folder)
{
    if (!wait_and_finish(folder))
        return 0;
    fprintf(stderr, "conch: its libraries cannot be unpacked:%s\n", failures);
    return 1;
}

/* Opens those of 0, 1 and 2 that are closed, so that no file of ours becomes the Python's stdin, or a client's socket
   its stderr. */
static void open_streams(void)
{
    int opened;
    while ((opened = open("/dev/null", O_RDWR)) >= 0 && opened <= STDERR_FILENO)
        ;
    if (opened >= 0)
        close(opened);
}

int main(int count, char **words)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char path[3072], name[64];
    mode_t mask = umask(077);
    open_streams();
    if (count == 2 && !strcmp(words[0], "conch-unpack"))
        return finish_now(words[1]);
    if (cache && *cache == '/')
        start(cache, "/conch", mask, count, words);
    if (home && *home == '/' && snprintf(path, sizeof path, "%s/.cache", home) < (int)sizeof path)
        start(path, "/conch", mask, count, words);
    snprintf(name, sizeof name, "/conch-%u", (unsigned)geteuid());
    start("/tmp", name, mask, count, words);
    fprintf(stderr,
            "conch: there is no folder to unpack this program into: set XDG_CACHE_HOME to one that this user owns, "
            "with 150 MB free and where programs may run. Tried:%s\n",
            failures);
    return 1;
}
