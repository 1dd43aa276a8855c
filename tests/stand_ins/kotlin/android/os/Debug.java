package android.os;

public final class Debug {
    public static long threadCpuTimeNanos() {
        return java.lang.management.ManagementFactory.getThreadMXBean().getCurrentThreadCpuTime();
    }
}
