import java.io.File
import java.nio.FloatBuffer
import org.lightningprune.ProbeRunner
import org.lightningprune.logic.ModelException
import org.pytorch.executorch.Module

/** Runs the probe in a folder and prints what an app would write, or show, and where the inputs lay. */
fun main(arguments: Array<String>) {
    try {
        var told = 0L
        val results = ProbeRunner.run(File(arguments[0]), "a stand-in") { done, all -> told = 100 * done / all }
        println(results.toJson())
        println("$told %")
        val floats = Module.taken.map { it.buffer }.filterIsInstance<FloatBuffer>()
        floats[0].put(0, 42f)
        println("sizes ${floats.map { it.capacity() }.distinct()}, in one place ${floats.all { it.get(0) == 42f }}")
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}
