import java.io.File
import org.lightningprune.ProbeRunner
import org.lightningprune.logic.ModelException

/** Runs the probe in a folder and prints what an app would write, or show. */
fun main(arguments: Array<String>) {
    try {
        var told = 0
        val results = ProbeRunner.run(File(arguments[0]), "a stand-in") { done, all -> told = 100 * done / all }
        println(results.toJson())
        println("$told %")
    } catch (error: ModelException) {
        println("message: ${error.message}")
    }
}
