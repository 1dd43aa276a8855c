package org.lightningprune.digitpad

import android.os.Build
import android.os.Bundle
import android.widget.Button
import java.io.File
import java.io.IOException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext
import org.lightningprune.ProbeRunner
import org.lightningprune.logic.ModelException
import org.lightningprune.logic.ProbeResults

/**
 * Time the programs of the folder probe among the app's files, and write probe.json beside it: both are pushed and pulled
 * with adb. Started by adb with --ez run true, it begins by itself.
 */
class ProbeActivity : ModelActivity() {
    private lateinit var button: Button

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        text.textSize = 18f
        button = button("Run the probe") { probe() }
        show(button, text)
        if (intent.getBooleanExtra("run", false)) probe()
    }

    private fun probe() = start {
        button.isEnabled = false
        try {
            // one thread for all of it: the clock is that thread's own
            val (results, target) = withContext(Dispatchers.IO) { written() }
            text.text = "${results.nanoseconds.size} programs timed, ${results.failed.size} failed\n$target"
        } finally {
            button.isEnabled = true
        }
    }

    private fun written(): Pair<ProbeResults, File> {
        val files = getExternalFilesDir(null) ?: throw ModelException("the phone's storage is not there")
        val target = File(files, "probe.json")
        var shown = -1
        val results = ProbeRunner.run(File(files, "probe"), "${Build.MANUFACTURER} ${Build.MODEL}") { done, all ->
            val percent = (100L * done / all).toInt()
            if (percent > shown) {
                shown = percent
                runOnUiThread { text.text = "$percent %" }
            }
        }
        try {
            val part = File(files, "probe.json.part")
            part.writeText(results.toJson())
            if (!part.renameTo(target)) throw IOException("it cannot be renamed")
        } catch (error: IOException) {
            throw ModelException("$target cannot be written: ${error.message}")
        }
        return Pair(results, target)
    }
}
